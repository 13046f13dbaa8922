"""Views of a clip: how frames and sound are cut and augmented."""
