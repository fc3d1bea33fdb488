"""Keeps refusals out of the log: what a client did wrong is in its answer, and is no traceback of the server.

vLLM 0.32 logs every exception of /v1/messages and of a chat's stream with its traceback (`logger.exception`), refused
requests included. Its other routes log none for what they answer with a status below 500.
"""

import logging
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError, VLLMClientError

from openai_frontend.vllm_seam import create_error_response

LOGGERS = (
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.openai.responses.serving",
)


def is_no_refusal(record: logging.LogRecord) -> bool:
    """False for the log line of a refused request. A filter of loggers.

    A ValueError may be a refusal or a bug, and vLLM answers it with 400: it keeps its line and loses its traceback.
    """
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Exception) and create_error_response(error).error.code < HTTPStatus.INTERNAL_SERVER_ERROR:
        record.exc_info = record.exc_text = None
    return not isinstance(error, VLLMClientError | GracefulHTTPError)


def drop_refusals() -> None:
    """Have vLLM's loggers of routes drop them. May be called again."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(is_no_refusal)
