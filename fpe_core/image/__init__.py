"""Images on their way to the model: decoding, colour, fitting; boxes and masks with them."""
