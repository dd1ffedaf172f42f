"""Makes PDF files, small and hostile ones."""

import zlib

HEADER = b"%PDF-1.4\n"


def make_pdf(*pages: str, extra: bytes = b"") -> bytes:
    """A PDF with these pages; `extra` becomes part of the trailer."""
    contents = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in pages]
    return assemble(contents, extra=extra)


def bomb(megabytes: int) -> bytes:
    """A PDF of some kilobytes whose only page unpacks to so many megabytes of drawing."""
    work = b"BT /F1 12 Tf " + b"(x) Tj 1 1 Td " * (megabytes * 2**20 // 14) + b"ET"
    return assemble([zlib.compress(work, 9)], b"/Filter /FlateDecode ")


def assemble(contents: list[bytes], stream_options: bytes = b"", extra: bytes = b"") -> bytes:
    """The file around the pages' streams."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /Contents {5 + 2 * number} 0 R {resources} >>".encode(),
            b"<< %s/Length %d >>\nstream\n%s\nendstream" % (stream_options, len(content), content),
        ]
    body, offsets = HEADER, []
    for number, entry in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, entry)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    trailer = b"trailer << /Size %d /Root 1 0 R %s>>\n" % (len(objects) + 1, extra)
    return body + table + trailer + b"startxref\n%d\n%%%%EOF\n" % len(body)
