"use strict";
/** A JsSIP phone in a page. Whatever a test waits for is a promise. */

class BrowserPhone {
    constructor({ server, uri, password, headers }) {
        this.ua = new JsSIP.UA({
            sockets: [new JsSIP.WebSocketInterface(server)],
            uri,
            password,
            instance_id: localStorage.instance ??= crypto.randomUUID(),
            register_expires: 600,
            session_timers: false,
        });
        this.ua.registrator().setExtraHeaders(headers);
        this.registered = new Promise((resolve, reject) => {
            this.ua.once("registered", ({ response }) => resolve(response.getHeader("X-Push")));
            this.ua.once("registrationFailed", ({ cause }) => reject(new Error(cause)));
        });
        this.invited = new Promise((resolve) => {
            this.ua.on("newRTCSession", ({ originator, request, session }) => {
                if (originator === "remote") {
                    this.follow(session);
                    resolve({ pushId: request.getHeader("X-Push-Id"), uri: request.ruri.toString() });
                }
            });
        });
        this.ua.start();
    }

    call(target) {
        this.follow(this.ua.call(target, { ...BrowserPhone.audio }));
    }

    answer() {
        this.session.answer({ ...BrowserPhone.audio });
    }

    hangUp() {
        this.session.terminate();
    }

    follow(session) {
        this.session = session;
        this.ringing = new Promise((resolve) => session.once("progress", () => resolve(true)));
        this.confirmed = new Promise((resolve, reject) => {
            session.once("confirmed", () => resolve(true));
            session.once("failed", ({ cause, message }) =>
                reject(new Error(`${cause} ${message?.status_code ?? ""}`)));
        });
        this.ended = new Promise((resolve) => session.once("ended", ({ cause }) => resolve(cause)));
        this.confirmed.catch(() => {});
    }

    /** Resolves once so many RTP packets of the other side have come in. */
    async received(packets) {
        for (;;) {
            const stats = await this.session.connection.getStats();
            for (const report of stats.values()) {
                if (report.type === "inbound-rtp" && report.packetsReceived >= packets) {
                    return report.packetsReceived;
                }
            }
            await new Promise((resolve) => setTimeout(resolve, 50));
        }
    }
}

/** Resolves once the service worker shows a notification with such data. */
async function notification(data) {
    const worker = await navigator.serviceWorker.ready;
    for (;;) {
        const all = await worker.getNotifications();
        for (const { title, body, tag, data: shown } of all) {
            if (Object.keys(data).every((key) => shown[key] === data[key])) {
                return { title, body, tag, number: all.length };
            }
        }
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}

BrowserPhone.audio = {
    mediaConstraints: { audio: true, video: false },
    pcConfig: { iceServers: [] },
};
