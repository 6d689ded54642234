"""Expressions with types: `binding` gives an expression its types, `evaluate` computes whole columns."""
