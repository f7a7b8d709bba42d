"""Pictures before and after the model: decoding, colour, fitting, boxes, masks."""
