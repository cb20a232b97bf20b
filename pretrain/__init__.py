"""Pretrain small and large text models with one JAX codebase, and measure what that buys."""
