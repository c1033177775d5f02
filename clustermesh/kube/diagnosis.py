"""Why an API server could not be asked, in an operator's words. Pure."""

import errno
import os
import ssl

import aiohttp

_EXPIRED, _NOT_YET = 10, 9
_UNTRUSTED = (18, 19, 20, 21)  # X509_V_ERR_*: self-signed or no issuer that we know
_OTHER_NAME = (62, 64)


def why(error: Exception, context: str) -> str:
    """What went wrong on the way to the API server of a kubeconfig's context, and what to do about it."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(error.certificate_error, context)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(error, context)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"host {error.host} does not resolve: check the server of context {context!r}"
    if isinstance(error, aiohttp.ClientConnectorSSLError) and isinstance(error.os_error, ssl.SSLError):
        return _handshake(error.os_error, context)
    if isinstance(error, ssl.SSLError):
        return _handshake(error, context)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
        return f"{reason}: check that it runs, and the server of context {context!r}"
    if isinstance(error, TimeoutError):
        return f"no answer in time: check the way there, and the server of context {context!r}"
    closed = isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE)
    if closed or isinstance(error, aiohttp.ServerDisconnectedError):
        # Under TLS 1.3 a refused client certificate may show as nothing but this.
        return (
            f"it closed the connection without an answer: if that lasts, renew the client certificate of context "
            f"{context!r}"
        )
    return str(error) or type(error).__name__


def _certificate(error: BaseException, context: str) -> str:
    code = getattr(error, "verify_code", 0)
    reason = str(getattr(error, "verify_message", "") or error).rstrip(".")
    if code == _EXPIRED:
        return f"its certificate has expired ({reason}): renew it"
    if code == _NOT_YET:
        return f"its certificate is not valid yet ({reason}): check both clocks"
    if code in _UNTRUSTED:
        return (
            f"its certificate is not signed by the CA of context {context!r} ({reason}): "
            "renew the kubeconfig's certificate-authority"
        )
    if code in _OTHER_NAME:
        return f"its certificate is for another host ({reason}): check server and tls-server-name of {context!r}"
    return f"its certificate is not acceptable ({reason})"


def _handshake(error: ssl.SSLError, context: str) -> str:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    if "alert" in reason:
        return f"it refused the client certificate of context {context!r} ({reason}): renew client-certificate and key"
    return f"the TLS handshake failed ({reason}): check the server of context {context!r}"
