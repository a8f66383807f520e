-- How much of a partition nobody has read yet: {now in ms, entries, arrival of the oldest in ms or -1}. KEYS: stream. ARGV: group.
-- A server before 7.0 counts no lag: there it is what lies in the stream and is not pending, which is never too little.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {now, 0, -1}
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local told = {}
  for i = 1, #group, 2 do
    told[group[i]] = group[i + 1]
  end
  if told['name'] == ARGV[1] then
    local unread = redis.call('XRANGE', KEYS[1], '(' .. told['last-delivered-id'], '+', 'COUNT', 1)
    if #unread == 0 then
      return {now, 0, -1}
    end
    local lag = tonumber(told['lag'] or nil) or redis.call('XLEN', KEYS[1]) - told['pending']
    return {now, math.max(lag, 1), tonumber(string.match(unread[1][1], '^(%d+)'))}
  end
end
return {now, redis.call('XLEN', KEYS[1]), -1}
