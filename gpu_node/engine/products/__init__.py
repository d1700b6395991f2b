"""Matrix products with weights as they are held: dense, 16-bit under 32-bit activations, int8, int4, compiled."""
