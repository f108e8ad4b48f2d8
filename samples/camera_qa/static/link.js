// The WebSocket: JSON messages both ways, pictures as bytes, reconnecting for ever.

const WAITS_MS = [300, 600, 1000, 2000, 4000];

export class Link {
  #socket = null;
  #failures = 0;
  #ended = false;

  constructor({ onMessage, onPicture, onState }) {
    this.onMessage = onMessage;
    this.onPicture = onPicture;
    this.onState = onState;
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/live`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#failures = 0;
      this.onState("open");
    };
    socket.onmessage = (event) => {
      if (typeof event.data === "string") this.onMessage(JSON.parse(event.data));
      else this.#picture(event.data);
    };
    socket.onclose = (event) => {
      this.#socket = null;
      if (this.#ended) return;
      this.onState("closed", event.reason);
      const wait = WAITS_MS[Math.min(this.#failures++, WAITS_MS.length - 1)];
      setTimeout(() => this.open(), wait);
    };
    this.#socket = socket;
  }

  send(type, fields = {}) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(JSON.stringify({ type, ...fields }));
    return true;
  }

  sendPicture(bytes) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(bytes);
  }

  close() {
    this.#ended = true;
    this.#socket?.close();
  }

  // Four bytes say how long the JSON head is; a JPEG follows it.
  #picture(buffer) {
    const length = new DataView(buffer).getUint32(0);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const jpeg = new Blob([new Uint8Array(buffer, 4 + length)], { type: "image/jpeg" });
    this.onPicture(head, jpeg);
  }
}
