/** Files on their way into the next message. */

import type { ReactNode } from "react";
import type { Upload } from "../state/uploads";
import { Icon } from "./Icon";

interface Props {
  uploads: Upload[];
  onRemove: (key: number) => void;
}

export function UploadList({ uploads, onRemove }: Props): ReactNode {
  if (uploads.length === 0) return null;
  return (
    <ul className="attachments uploads" aria-label="Files for this message">
      {uploads.map(({ key, name, part, attachment, error }) => (
        <li key={key} className={error === null ? undefined : "failed"}>
          <Icon name="attach" />
          <span className="name">{name}</span>
          {error !== null && (
            <span className="error" role="alert">
              {error}
            </span>
          )}
          {error === null && !attachment && <progress max={1} value={part} aria-label={`Uploading ${name}`} />}
          <button type="button" className="icon-button" aria-label={`Remove ${name}`} onClick={() => onRemove(key)}>
            <Icon name="close" />
          </button>
        </li>
      ))}
    </ul>
  );
}
