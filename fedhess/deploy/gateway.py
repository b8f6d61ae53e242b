"""nginx in front of the SuperLink: it passes only what nodes send.

Flower 1.41 serves nodes, users who start runs, and the processes of the SuperLink itself on one port. It authenticates
only nodes. So the SuperLink listens on loopback, and nodes reach it through nginx, which passes paths under
``/v1/fleet/`` and refuses all others with status 403.
"""

import os
import shutil
from pathlib import Path
from string import Template

from fedhess.base.errors import UsageError
from fedhess.deploy.keys import Keys
from fedhess.deploy.programs import Program, writing_to

# Flower sends arrays in pieces of 20 MiB. A node polls every few seconds and sends a request for each array, so
# several nodes behind one address may send some thousand requests in a burst. Requests above the limits get nginx's
# default status 503, after which a node retries; after 429 Flower 1.41 gives up.
CONFIG = Template("""\
daemon off;
worker_processes auto;
worker_rlimit_nofile 8192;
pid "$folder/nginx.pid";
error_log stderr warn;
events { worker_connections 4096; }
http {
  access_log off;
  server_tokens off;
  client_body_temp_path "$folder/body";
  proxy_temp_path "$folder/proxy";
  fastcgi_temp_path "$folder/fastcgi";
  uwsgi_temp_path "$folder/uwsgi";
  scgi_temp_path "$folder/scgi";
  limit_req_zone $$binary_remote_addr zone=requests:10m rate=${rate}r/s;
  limit_conn_zone $$binary_remote_addr zone=connections:10m;
  upstream superlink {
    server 127.0.0.1:$control_port;
    keepalive 32;
  }
  server {
    listen $listen ssl;
    ssl_certificate $certificate;
    ssl_certificate_key $key;
    ssl_protocols TLSv1.2 TLSv1.3;
    client_header_timeout 20s;
    client_body_timeout ${stall}s;
    send_timeout ${stall}s;
    client_max_body_size ${body_mb}m;
    location / { return 403; }
    location = /v1/fleet { return 403; }
    location /v1/fleet/ {
      limit_req zone=requests burst=$burst nodelay;
      limit_conn connections $connections;
      proxy_pass https://superlink/v1/fleet/;
      proxy_ssl_trusted_certificate $ca;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 300s;
    }
  }
}
""")
SYSTEM_FOLDERS = os.pathsep.join(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])  # in addition to those of PATH
BODY_MB, REQUESTS_PER_SECOND, BURST, CONNECTIONS = 64, 200, 4000, 128
STALL_SECONDS = 60  # after which a request without progress is dropped


def gateway(keys: Keys, *, host: str, port: int, control_port: int, folder: Path) -> Program:
    """Write a configuration with which nginx listens on an IP address, and return nginx as a program.

    Raises:
        UsageError: nginx is not installed, a certificate or key is missing, or the folder cannot be written.
    """
    keys.require(keys.ca, keys.server, keys.server_key)
    nginx = shutil.which("nginx") or shutil.which("nginx", path=SYSTEM_FOLDERS)
    if nginx is None:
        raise UsageError(
            "there is no nginx, through which nodes reach the SuperLink; install it (Debian: apt-get install "
            "nginx-light; macOS: brew install nginx)"
        )
    folder = folder.resolve()
    files = {"ca": keys.ca, "certificate": keys.server, "key": keys.server_key}
    text = CONFIG.substitute(
        {name: f'"{file.resolve()}"' for name, file in files.items()},
        folder=folder,
        listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        control_port=control_port,
        body_mb=BODY_MB,
        rate=REQUESTS_PER_SECOND,
        burst=BURST,
        connections=CONNECTIONS,
        stall=STALL_SECONDS,
    )
    file = folder / "nginx.conf"
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return Program(nginx, ["-e", "stderr", "-p", str(folder), "-c", str(file)])
