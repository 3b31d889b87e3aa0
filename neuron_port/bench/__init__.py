"""The development suite of drafting tasks, scripted exchanges for it, and the figures of a benchmark run."""
