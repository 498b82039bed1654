"""Measurements to expect: computed from what is going to run, before it does.

Evidence says what was measured; a policy lists what should have been. Each file here
turns one sort of image into the values that a policy of its kind lists.

    eif          AWS Nitro Enclaves: PCR 0, 1, 2 and 8 of an enclave image file
    sigstruct    SGX: MRENCLAVE and MRSIGNER of a signed enclave's SIGSTRUCT
    snp_launch   SEV-SNP: the launch digest of a firmware and its virtual machine
    ovmf         its firmware, as far as the launch digest needs it
    vmsa         its processors' registers at the start
    mrtd         TDX: MRTD, of a firmware
    tdvf         that firmware, as far as MRTD needs it
    firmware_table    what the two sorts of firmware have in common

Event logs of TPMs and TDs are replayed by ``attestation.event_log``.

Plan, package and configuration are not measured: they stand in the key document, which
the evidence covers, and a trust file lists them.
"""
