"""Search: the nearest slices, volumes voted for by their slices, and re-ranking.

`engine` opens an index and searches it; `modes` is the table of the ways of searching;
`aggregation`, `rerank` and `pooling` hold the papers' formulas, `nearest` the search for single
slices. `selection` says with which slices of a query to search, `filters` what may be found,
`feedback` what is more like it. Modes work on arrays (`database`); `stored` makes them of an index.
"""
