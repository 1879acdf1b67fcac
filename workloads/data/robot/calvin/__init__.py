"""CALVIN's folders of frames, with the spans of them that people described."""
