"""Student encoders: their sizes and their initialisation."""
