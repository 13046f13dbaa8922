"""The page that shows the neighbors of clips, and its server."""
