"""Sessions: what two processes say is sealed, and each knows what the other is.

Four messages in HTTP bodies make a session, keys of one exchange each seal what
follows; ``docs/session.md`` is the specification. Rules of this room:

    evidence first     a caller seals nothing before the responder's evidence was
                       accepted, a responder answers nothing before the caller's was
    one transcript     both sign the hash of all that was said, ciphertext included
    once               nonces and exchange ids are good for one use
    it ends            a session ends when the evidence it rests on is too old

    suites       the HPKE suites, hybrid with a post-quantum KEM first
    identity     keys of a process, the document that announces them, its evidence
    messages     the four messages, parsed strictly
    handshake    Initiator and Responder, without I/O
    keys         a session's secrets: one key per exchange and direction
    records      sealed bytes: chunks under AES-256-GCM, in order, with an end
    bodies       sealed HTTP bodies, of requests and answers
    responders   what a responder keeps: open handshakes, sessions, used exchange ids
"""
