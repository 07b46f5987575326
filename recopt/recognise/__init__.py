"""What patterns recognise by: contractions, lookups, softmaxes, recurrences, and the host values that hold them."""
