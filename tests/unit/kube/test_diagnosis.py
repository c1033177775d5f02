"""An API server that cannot be asked is told in words that name the context and the remedy."""

import errno
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from clustermesh.kube.diagnosis import why

KEY = ConnectionKey("192.0.2.1", 6443, True, True, None, None, None)


def unverified(code: int, message: str) -> Exception:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return aiohttp.ClientConnectorCertificateError(KEY, error)


def alert() -> ssl.SSLError:
    error = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (unverified(19, "self-signed certificate in certificate chain"), "not signed by the CA of context 'red'"),
        (unverified(10, "certificate has expired"), "its certificate has expired (certificate has expired): renew it"),
        (unverified(9, "certificate is not yet valid"), "check both clocks"),
        (unverified(62, "hostname mismatch"), "tls-server-name of 'red'"),
        (alert(), "it refused the client certificate of context 'red'"),
        (aiohttp.ClientConnectorSSLError(KEY, alert()), "it refused the client certificate of context 'red'"),
        (
            aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"),
            "the client certificate of context 'red'",
        ),
        (aiohttp.ServerDisconnectedError(), "the client certificate of context 'red'"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "Connect call failed")), "Connection refused:"),
        (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "unknown")), "192.0.2.1 does not resolve"),
        (TimeoutError(), "no answer in time"),
        (aiohttp.ClientPayloadError("half an answer"), "half an answer"),
    ],
)
def test_each_failure_is_told_with_its_remedy(error: Exception, said: str) -> None:
    reason = why(error, "red")
    assert said in reason
    assert "SSL:" not in reason and "Errno" not in reason
