"""The libraries that decode: PyAV, decord, torchcodec, one module each."""
