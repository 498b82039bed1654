"""Agreement of replicas: who answered alike, and whose answer is served.

    tally.py     nouns: Member, Vote, Absence, Tally and its JSON form
    seats.py     what replicas amount to: weights, and voices that count once
    quorum.py    decide() and recompute(), pure
    collect.py   collect(): asks a committee until a quorum agrees
    reputation.py  what past answers count for: weights, quarantine, the cap
    ledger.py    reputations in SQLite; accounts.py, ledger_file.py
    known_answers.py  inputs of segments whose outputs are known, in a file
    rules/       when two answers are alike: one file per rule

One honest coordinator asks n = 2f+1 replicas and serves what f+1 of them agree on.
Replicas do not talk to one another. f+1 colluding replicas win: that is the limit;
where voices count, f+1 colluding voices.
"""
