"""Search: the nearest slices, volumes voted for by their slices, and re-ranking.

`engine` opens an index and searches it; `modes` is the table of the ways of searching;
`aggregation` and `rerank` hold the papers' formulas, `nearest` the search for single slices. Only
`engine` knows how an index is stored.
"""
