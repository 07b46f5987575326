"""Terms in index notation: sizes, terms and their normal form, tensors, their printer and float64 evaluator."""
