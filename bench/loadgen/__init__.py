"""A load generator for language-model servers, made of several cheap client processes."""
