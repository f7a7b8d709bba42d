"""What a finished or running folder says of itself: facts, comparison, gallery, contact sheet."""
