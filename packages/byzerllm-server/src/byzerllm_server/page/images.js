// Images that a question brings along, as data URLs.

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const LARGEST_SIDE = 2048;
const LARGEST_BYTES = 4 * 2 ** 20;

/** The images among what was chosen, pasted or dropped. */
export function imageFiles(source) {
  return [...(source?.files || [])].filter((file) => file.type.startsWith("image/"));
}

/** The data URL of an image; a large one is made smaller, as models do themselves. Rejects what is no image. */
export async function readImage(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= LARGEST_BYTES && TAKEN.includes(file.type)) return dataUrl(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const paper = canvas.getContext("2d");
  // JPEG has no transparency.
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
