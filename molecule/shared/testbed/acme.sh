#!/bin/sh
# Program of the helper host `acme`: an ACME authority (pebble), the DNS that it asks, and a web certificate for both.
set -eu
mkdir -p /srv/acme
cd /srv/acme
curve='-pkeyopt ec_paramgen_curve:P-256'
# shellcheck disable=SC2086  # $curve is two words on purpose
{
    openssl req -x509 -newkey ec $curve -nodes -days 3650 -subj '/CN=Test bed authority' -keyout ca.key -out ca.pem \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
    openssl req -newkey ec $curve -nodes -subj /CN=acme -keyout acme.key -out acme.csr
    cat > acme.ext <<'EOF'
subjectAltName=DNS:acme
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
EOF
    openssl x509 -req -in acme.csr -CA ca.pem -CAkey ca.key -days 3650 -extfile acme.ext -out acme.pem
} 2>/dev/null
cat > pebble.json <<'EOF'
{"pebble": {
  "listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000",
  "certificate": "/srv/acme/acme.pem", "privateKey": "/srv/acme/acme.key",
  "httpPort": 80, "tlsPort": 443, "retryAfter": {"authz": 1, "order": 1}}}
EOF
# Only DNS: the other challenge servers stay off, and a name that nobody added has no address.
pebble-challtestsrv -dns01 :8053 -management :8055 -http01 '' -https01 '' -tlsalpn01 '' -doh '' \
    -defaultIPv4 '' -defaultIPv6 '' &
# By default pebble rejects every twentieth nonce to see whether clients try again. certbot does, once; two in a row would
# fail one test run in many, and say nothing of the roles.
PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=0 exec pebble -config pebble.json -dnsserver 127.0.0.1:8053
