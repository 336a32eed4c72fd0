/**
 * The files of a drop; those of a folder too, but for its hidden ones. `lost(name)` is told of each
 * file and folder that may not be read.
 */
export async function droppedFiles(transfer, lost) {
  // Entries are gone once the event is over, so all are taken before the first is read.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map((entry) => filesOf(entry, lost)))).flat();
}

async function filesOf(entry, lost) {
  try {
    return await within(entry, lost);
  } catch {
    lost(entry.name);
    return [];
  }
}

async function within(entry, lost) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const inside = await everything(entry.createReader());
  const shown = inside.filter((one) => !one.name.startsWith("."));
  return (await Promise.all(shown.map((one) => filesOf(one, lost)))).flat();
}

/** A reader gives some entries at a time, and none at its end. */
async function everything(reader) {
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return all;
    all.push(...some);
  }
}
