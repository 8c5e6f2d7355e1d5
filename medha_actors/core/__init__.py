"""The pure scheduling core: no Ray, no torch, no clock. Time comes in as `now`, facts go out as
return values."""
