/** Files of a message. */

import type { ReactNode } from "react";
import type { Attachment } from "../api/types";
import { megabytes, plural } from "../format";
import { useApp } from "../state/app";
import { Icon } from "./Icon";

export function AttachmentList({ attachments }: { attachments: Attachment[] }): ReactNode {
  const { api } = useApp();
  if (attachments.length === 0) return null;
  return (
    <ul className="attachments" aria-label="Attached files">
      {attachments.map(({ id, name, bytes, pages }) => (
        <li key={id}>
          <Icon name="attach" />
          <a href={api.attachmentAddress(id)} download>
            {name}
          </a>
          <span className="quiet">{pages === null ? megabytes(bytes) : plural(pages, "page", "pages")}</span>
        </li>
      ))}
    </ul>
  );
}
