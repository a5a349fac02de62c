"""Training on several processes at once: who started them, what travels between them, and what each one does.

One process is the first rank: it reads the rows, decides, reports and writes. The others open the same model, run
their share of every step and write nothing. Engines that carry the sums are other people's: MPI, through mpi4py.
"""
