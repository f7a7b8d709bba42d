"""What an edit is measured by: CLIP, structure, LPIPS, pixels, regions."""
