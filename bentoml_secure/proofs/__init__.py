"""Zero-knowledge proofs that a segment computed what it says, linked into a chain.

The rules of this room:

1. What a prover ships is never believed: verification keys, settings and structured
   reference strings come from a manifest that the model's owner signed.
2. A backend's native code runs in a process of its own, one per job, bounded in memory
   and time. It may crash; nothing else does.
3. A proof shows three hashes: of the boundary that went in, of the salt that hides the
   boundary that came out, and of that boundary. Equal hashes link two segments.
4. Boundaries are exact integers (activations at a fixed scale, and salt). Nothing is
   rounded on the way from one segment to the next.
"""
