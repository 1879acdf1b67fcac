"""CALVIN's folders of frames and their annotated spans."""
