"""Agreement of replicas: who is asked, who answered alike, whose answer is served.

    committee.py  the draw: an order of all replicas, by lot and by weight, pure
    seating.py    who sits on a committee: seats are taken in that order, pure
    tally.py      nouns: Member, Vote, Absence, Tally and its JSON form
    seats.py      what replicas amount to: weights, and voices that count once
    quorum.py     decide() and recompute(), pure
    collect.py    collect(): asks a committee until a quorum agrees, or a referee
                  rules; course.py, asks.py, latency.py
    commit_reveal.py  commitments to answers; barrier.py holds answers back
    reputation.py  what past answers count for: weights, quarantine, the cap
    ledger.py     reputations in SQLite; accounts.py, ledger_file.py
    known_answers.py  inputs of segments whose outputs are known, in a file
    rules/        when two answers are alike: one file per rule
    calibration.py  tolerances from distances that were measured
    semantic_similarity.py  advice on texts, which is no vote; semantic_vetoes.py

One honest coordinator asks n = 2f+1 replicas and serves what f+1 of them agree on.
Replicas do not talk to one another. f+1 colluding replicas win: that is the limit;
where voices count, f+1 colluding voices. A referee, where there is one, is believed
alone.
"""
