"""The bytes of a .vbc file: container, frequency tables and entropy-coded lanes."""
