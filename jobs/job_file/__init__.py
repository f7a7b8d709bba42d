"""Job files: read, checked with places in the text, shown with every default."""
