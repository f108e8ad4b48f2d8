// Draws the asked picture and, on it, what was kept and how relevant it was.
//
// As tokprune.overlay: the finest grid of each frame, the rest dimmed, relevance in orange. A video
// is a sheet of frames in rows; `sheet` says where they lie.

const WIDE_PX = 1200; // small pictures are drawn larger, so that lines are thin
const DIM = "rgba(5, 8, 12, 0.66)";
const TINT = [255, 176, 0];
const HEAT = [[27, 12, 65], [120, 28, 109], [207, 68, 70], [251, 155, 6], [247, 233, 138]];

export function drawAsked(canvas, picture, { layers = [], sheet = null, mode = "kept" }) {
  const grow = Math.min(4, Math.max(1, WIDE_PX / picture.width));
  canvas.width = Math.round(picture.width * grow);
  canvas.height = Math.round(picture.height * grow);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (mode === "off") return;
  const strongest = Math.max(...layers.flatMap((layer) => layer.scores ?? [0]), Number.MIN_VALUE);
  layers.forEach((layer, number) => {
    const box = frameBox(canvas, sheet, grow, number);
    if (mode === "heat") drawHeat(pen, layer, box, strongest);
    else drawKept(pen, layer, box, strongest);
    drawEdges(pen, layer, box, mode === "heat" ? 1.5 : 2);
  });
}

function frameBox(canvas, sheet, grow, number) {
  if (!sheet) return { x: 0, y: 0, width: canvas.width, height: canvas.height };
  const row = Math.floor(number / sheet.columns);
  return {
    x: (number % sheet.columns) * (sheet.width + sheet.gap) * grow,
    y: row * (sheet.height + sheet.gap) * grow,
    width: sheet.width * grow,
    height: sheet.height * grow,
  };
}

// Whole pixels, and the same for neighbours, so that no seam shows between cells.
function cellBox(layer, box, row, column) {
  const left = Math.round(box.x + (column * box.width) / layer.columns);
  const top = Math.round(box.y + (row * box.height) / layer.rows);
  const right = Math.round(box.x + ((column + 1) * box.width) / layer.columns);
  const bottom = Math.round(box.y + ((row + 1) * box.height) / layer.rows);
  return [left, top, right - left, bottom - top];
}

function eachCell(layer, act) {
  for (let cell = 0; cell < layer.rows * layer.columns; cell++) {
    act(cell, Math.floor(cell / layer.columns), cell % layer.columns);
  }
}

function keptCells(layer) {
  layer.keptSet ??= new Set(layer.kept);
  return layer.keptSet;
}

function drawKept(pen, layer, box, strongest) {
  const kept = keptCells(layer);
  eachCell(layer, (cell, row, column) => {
    if (kept.has(cell)) {
      const share = layer.scores ? Math.sqrt(layer.scores[cell] / strongest) : 0;
      pen.fillStyle = `rgba(${TINT.join(",")},${(0.25 * share).toFixed(3)})`;
    } else {
      pen.fillStyle = DIM;
    }
    pen.fillRect(...cellBox(layer, box, row, column));
  });
}

function drawHeat(pen, layer, box, strongest) {
  pen.fillStyle = "rgba(5, 8, 12, 0.35)";
  pen.fillRect(box.x, box.y, box.width, box.height);
  if (!layer.scores) return;
  eachCell(layer, (cell, row, column) => {
    const share = Math.sqrt(layer.scores[cell] / strongest);
    pen.fillStyle = `rgba(${heat(share).join(",")},${(0.12 + 0.5 * share).toFixed(3)})`;
    pen.fillRect(...cellBox(layer, box, row, column));
  });
}

function heat(share) {
  const place = Math.min(1, Math.max(0, share)) * (HEAT.length - 1);
  const low = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[low].map((part, axis) => Math.round(part + (HEAT[low + 1][axis] - part) * (place - low)));
}

// A line wherever a kept patch meets one that was not.
function drawEdges(pen, layer, box, width) {
  const kept = keptCells(layer);
  if (kept.size === layer.rows * layer.columns) return;
  pen.beginPath();
  eachCell(layer, (cell, row, column) => {
    const [x, y, w, h] = cellBox(layer, box, row, column);
    if (column + 1 < layer.columns && kept.has(cell) !== kept.has(cell + 1)) {
      pen.moveTo(x + w, y);
      pen.lineTo(x + w, y + h);
    }
    if (row + 1 < layer.rows && kept.has(cell) !== kept.has(cell + layer.columns)) {
      pen.moveTo(x, y + h);
      pen.lineTo(x + w, y + h);
    }
  });
  pen.lineCap = "square";
  pen.strokeStyle = "rgba(0, 0, 0, 0.55)";
  pen.lineWidth = width + 2;
  pen.stroke();
  pen.strokeStyle = "rgba(255, 255, 255, 0.92)";
  pen.lineWidth = width;
  pen.stroke();
}
