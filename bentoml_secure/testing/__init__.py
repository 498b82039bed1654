"""Fakes and simulators that users may import in their tests too.

Nothing that is shipped for use imports this package. Keys made here follow from
names: they protect nothing.

    deployment     an entry and runners with real keys and simulated evidence
    receipts       receipts of such a deployment, honest or not
    tampering      what a lying entry or replica could make of them
    faults         replicas of a real deployment that lie from inside
    dcap_pki       Intel's DCAP from root to quote, for evidence of TDX and SGX
    tpm_pki        a TPM's maker, a TPM and an enrolment authority, for its evidence
    swtpm          a software TPM that speaks the real protocol
    configfs       a kernel that hands out reports of confidential VMs
    rogue          a host of replicas that do anything at all
    worked_example the example of docs/receipt-format.md
"""
