"""A Flower app: clients fine-tune on rows that they keep, by `fabric train`; the server averages their adapters, by
`fabric merge --average`."""
