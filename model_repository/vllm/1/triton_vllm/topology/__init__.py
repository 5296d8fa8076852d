"""Which processes, CPUs, GPUs and nodes serve one engine, and how do they find each other?"""
