"""Where proofs that are owed wait: one table, in SQLite or in PostgreSQL.

The rules of the store:

1. It is a stranger's: whoever runs it may read every byte. Orders and links lie in it
   encrypted to the prover; results are public.
2. A job is known by its receipt, infer and segment. It is taken in once, and it has
   one result, whatever dies when: each change is one transaction.
3. Who works on a job holds a lease with a number. The lease ends unless it is renewed;
   the next one has the next number, and what an older one reports is not taken.
4. Nothing waits for ever: a job has a deadline, and a bounded number of attempts.
"""
