"""Model folders for tests: real small models, and tiny random ones of real architectures."""
