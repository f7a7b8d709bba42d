"""The scores of an edit: CLIP, structure, LPIPS, pixels, regions."""
