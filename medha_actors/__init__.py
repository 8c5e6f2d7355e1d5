"""Medha on Ray: LLM serving where nobody waits behind a long prompt (arXiv 2409.17264)."""
