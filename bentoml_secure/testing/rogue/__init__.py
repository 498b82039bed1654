"""A host of replicas that do anything: FAKE, for tests of those who must stand them.

    python -m bentoml_secure.testing.rogue module:Class --port PORT --marker DIR

One process has every replica of a deployment, with real segments, real keys and
simulated evidence under the development root it is given, which nobody else should
trust. Each replica answers on a port of its own, by a bare HTTP server that can break
every rule of the protocol; a control port says, at run time, who does what.

    wire           bare HTTP: requests in, any bytes out
    replica        one replica and one exchange with it, as a behaviour sees them
    answers        answers that are well-formed and wrong, or malformed
    streams        bytes that are no HTTP answer, too many, too slow, none
    attestations   evidence that is somebody else's, or none
    host           the process: replicas, control port
"""
