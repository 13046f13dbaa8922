"""Reading and writing media files: windows of frames and sound, their times, damage, training copies."""
