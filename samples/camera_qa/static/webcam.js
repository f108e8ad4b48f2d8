// This device's camera as a source: JPEGs over the WebSocket, one at a time, always the newest.

import { byId } from "./words.js";

const EVERY_MS = 66;
const QUALITY = 0.85;

export class Webcam {
  #link;
  #report;
  #stream = null;
  #video = null;
  #free = true; // the server has taken the picture before
  #last = 0;

  constructor(link, report) {
    this.#link = link;
    this.#report = report;
    byId("webcam").addEventListener("click", () => (this.#stream ? this.stop() : this.start()));
  }

  get running() {
    return this.#stream !== null;
  }

  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.#report({
        code: "webcam", message: "This browser gives its camera only to pages from localhost or over HTTPS.",
        hint: "Open the page on the machine itself, or through a proxy with HTTPS.",
      });
      return;
    }
    try {
      const wanted = { width: { ideal: 640 }, height: { ideal: 480 } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    } catch (error) {
      this.#report({
        code: "webcam", message: `The browser gives no camera (${error.name}).`,
        hint: "Allow the camera for this page, and see that no other program holds it.",
      });
      return;
    }
    this.#video = document.createElement("video");
    this.#video.muted = true;
    this.#video.playsInline = true;
    this.#video.srcObject = this.#stream;
    await this.#video.play();
    this.#stream.getVideoTracks()[0].addEventListener("ended", () => this.stop());
    this.#label();
    this.begin();
  }

  // Also after the WebSocket was lost: the server begins with a new source then.
  begin() {
    if (!this.#stream) return;
    this.#free = false;
    this.#link.send("webcam", { on: true });
  }

  accepted() {
    this.#free = true;
    this.#shoot();
  }

  taken() {
    this.#free = true;
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = this.#video = null;
    this.#label();
    this.#link.send("webcam", { on: false });
  }

  async #shoot() {
    const canvas = document.createElement("canvas");
    while (this.#stream) {
      const wait = this.#last + EVERY_MS - performance.now();
      await new Promise((resolve) => setTimeout(resolve, Math.max(5, wait)));
      if (!this.#free || !this.#video?.videoWidth) continue;
      this.#last = performance.now();
      canvas.width = this.#video.videoWidth;
      canvas.height = this.#video.videoHeight;
      canvas.getContext("2d").drawImage(this.#video, 0, 0);
      const jpeg = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
      if (!jpeg || !this.#stream) continue;
      this.#free = false;
      this.#link.sendPicture(await jpeg.arrayBuffer());
    }
  }

  #label() {
    byId("webcam").textContent = this.#stream ? "Stop this device's camera" : "Use this device's camera";
  }
}
