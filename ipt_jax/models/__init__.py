"""The decoder, its presets and the table of how it is split over devices."""
