"""Admission in the twin: floods, and whether what is announced comes true."""
